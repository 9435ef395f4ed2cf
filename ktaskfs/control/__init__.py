"""What the mount contains: files and directories of ``vfs`` that show and change ``tasks``."""
