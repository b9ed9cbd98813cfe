"""The PostgreSQL back end: one database, any number of servers, and one owner for each namespace."""
