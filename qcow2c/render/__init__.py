"""Forms of a dump: text for people, JSON for programs. They know nodes, and nothing of the format."""
