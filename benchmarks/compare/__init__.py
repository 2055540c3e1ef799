"""The rivals, each used as its own documentation says is best. Nothing outside this folder imports them.

They get the same rows, in batches of 256 with observation, action, reward, what follows and the end flag; those with
priorities return weights too and have the batch's priorities updated. Where one gives less, its case says so.
"""
