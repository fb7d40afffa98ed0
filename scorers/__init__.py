"""The machines behind distinctiveness (2): what completions are compared by."""
