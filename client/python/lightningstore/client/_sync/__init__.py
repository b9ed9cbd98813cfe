"""The blocking client, generated from the asyncio one by `make blocking`."""
