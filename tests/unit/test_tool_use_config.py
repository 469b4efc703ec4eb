from __future__ import annotations

from pathlib import Path

from environments.tool_use import ToolUse
from rlvr.config import load
from rlvr.rollout.renderer import Renderer
from rlvr.starter.tokenizer import train_tokenizer

CONFIG = Path(__file__).parents[2] / "configs" / "tool_use.toml"


def test_the_configs_limits_have_room_for_its_tasks() -> None:
    config = load(CONFIG)
    [section] = config.environments
    environment = ToolUse(ToolUse.Settings.model_validate(section.settings))
    tasks = [task for task, _ in zip(environment.tasks("train"), range(200), strict=False)]
    texts = [message.content for task in tasks for message in (*task.prompt, *environment.gold(task))]
    tokenizer = train_tokenizer(texts)
    renderer = Renderer(tokenizer)
    for task in tasks:
        gold = environment.gold(task)
        prompt = len(renderer.start(task.prompt, tools=task.tools))
        answer = sum(len(tokenizer.encode(message.content)) for message in gold)
        assert isinstance(section.turns, int)
        assert isinstance(section.completion_tokens, int)
        assert len(gold) <= section.turns
        assert answer + 60 < section.completion_tokens  # a short thought in each message
        assert prompt + section.completion_tokens + 40 < config.inference.max_model_len  # a tool's answer between
