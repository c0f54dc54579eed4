"""The grid of gates: objectives and cures × updates per step × temperature × dense and MoE × one and several turns × seeds."""
