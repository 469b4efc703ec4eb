"""Environments: what the model is asked, and what answers it. Each folder is written as a third party would."""
