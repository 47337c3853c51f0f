"""What can be done with a study, a file for each verb; `Study` has a method for every one."""
