"""The ways to adapt the pretrained encoder to a hospital, one file each; a file put here is found by being here."""
