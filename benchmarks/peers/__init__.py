"""The servers that ours is measured against, written as their documentation suggests."""
