class HostTable:
    pass
