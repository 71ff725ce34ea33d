"""The embedded default: a tiny policy, two tiny judges, their task language and how they were made."""
