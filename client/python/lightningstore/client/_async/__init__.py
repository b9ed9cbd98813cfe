"""The asyncio client, by hand. The blocking one is generated from it."""
