"""What stands between the page and the machine: the log, the health check, the guard before every request, the stop."""
