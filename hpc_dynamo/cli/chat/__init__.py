"""Client of an OpenAI chat endpoint, for the terminal."""
