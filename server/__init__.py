"""What coordinates the hospitals: the agreed vocabulary, the rounds, the validation of updates."""
