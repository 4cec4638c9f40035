"""Applications for the tests of servers: they are started by the real servers."""
