"""What asv keeps and shows of many commits: results that survive a kill, pages without a network.

Hooked into asv by ``harness.asv_plugin``; nothing here is imported unless asv runs.
"""
