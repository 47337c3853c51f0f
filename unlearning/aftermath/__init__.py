"""What happens after removal: relearning, and other forms of the trigger."""
