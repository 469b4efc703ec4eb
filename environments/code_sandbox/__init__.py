"""Small Python tasks, generated or from your own file, judged by hidden tests in the sandbox."""

from environments.code_sandbox.environment import CodeSandbox

__all__ = ["CodeSandbox"]
