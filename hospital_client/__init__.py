"""What runs inside one hospital: its raw tables, its partition, its own prompts and head."""
