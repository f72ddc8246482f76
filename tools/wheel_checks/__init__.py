"""What tools.check_wheel checks; each check returns the failures it found, as text."""
