"""The command ``lepo``."""
