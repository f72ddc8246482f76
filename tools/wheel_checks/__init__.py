"""What tools/check_wheel.py checks; each check returns the failures it found, as text."""
