"""What stands between the page and the machine: desk, models, visits, sessions, limits, log, health, guard, stop."""
