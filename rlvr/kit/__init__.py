"""What a person needs to write an environment: list, new, check, play, serve (`rlvr env ...`)."""
