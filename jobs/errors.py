"""What can go wrong with a job's files, for reasons a user can see and mend."""


class JobError(Exception):
    """The job at `--out` cannot go on; the message says why and what to do."""


class JobLocked(JobError):
    """Another run holds the job."""
