"""The rules, pure: no I/O, no clock, no thread, no asyncio. Events and times go in, values come out."""
