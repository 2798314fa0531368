"""Readers of what comes from outside, for the gateway and the checks in front of the sandbox. They raise ``ValueError``
and nothing of their own: what a fault means, and whom it is told, is for the caller to say."""
