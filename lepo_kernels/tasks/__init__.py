"""Problems to train on, rewards that check them, and models that need no hub."""
