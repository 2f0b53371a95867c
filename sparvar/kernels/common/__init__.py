"""Helpers shared by the ops: argument checks, tile and scale geometry, the op library, the native build."""
