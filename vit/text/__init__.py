"""Words to a head: prompts, the text towers that read them, and the head that is made and kept."""
