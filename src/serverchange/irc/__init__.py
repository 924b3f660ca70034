"""The chat platform's IRC without I/O: `line` is the codec, `client` and `server` are the two sides of a dialogue.

A machine here takes bytes and commands and gives events and bytes. It opens no socket and reads no clock; the
links in `serverchange.adapters` and the simulator carry it.
"""
