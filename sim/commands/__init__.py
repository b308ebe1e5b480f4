"""The commands of `tempt`, one module a group: options in, a call, lines out."""
