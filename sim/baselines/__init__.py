"""The systems that TEMPT is compared with, one file each; a file put here is found by being here."""
