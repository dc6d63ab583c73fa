"""Seed images made by the real qemu-img, and malformed ones made from them. Imports nothing of the package."""
