"""What a policy is worth: policy → cases, stored one by one → results with intervals. Nothing here trains anything."""
