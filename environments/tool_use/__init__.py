"""An IT service desk: tickets, users, assets and a knowledge base behind typed tools, and a caller on the line."""

from environments.tool_use.environment import ToolUse

__all__ = ["ToolUse"]
