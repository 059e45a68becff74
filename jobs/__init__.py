"""The job: what is to be done, what is done, and how both survive a crash.

Never touches pixels or models.
"""
