"""Adapters to whom and to what a job tells how it ended: mail, chats, journal, metrics."""
