"""Tables, progress and texts on the screen."""
