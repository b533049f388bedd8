"""Encoders: pictures become image tokens, words become text tokens; all return :class:`~.tokens.Tokens`."""
