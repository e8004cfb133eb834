"""Questions to Dagster's web server, as the UI asks them."""

import json
import urllib.request

NODES = "{ assetNodes { assetKey { path } dependencyKeys { path } groupName } }"
LAUNCH = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""
LOCATION = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status stepStats { stepKey startTime } } } }"
TERMINATE = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"
AGAIN = """
mutation($params: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""


def ask(url: str, query: str, **variables: object) -> dict:
    """The answer of the web server at this address."""
    request = urllib.request.Request(
        f"{url}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"]
