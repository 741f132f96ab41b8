"""What the scripts of all clients share. Needs no package."""


def refused(kind, call):
    """The error of this kind that a call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"wanted {kind.__name__}")
