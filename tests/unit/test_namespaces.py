import pytest
from lightningstore.client.namespaces import name_error
from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.service.rules.namespaces import NAMESPACE_KEY, check_namespace, namespace_of


@pytest.mark.parametrize("name", ["a", "0", "default", "run-1", "a.b_c-d", "a" * 63])
def test_a_name_has_letters_digits_and_three_marks_within(name):
    assert name_error(name) == ""


@pytest.mark.parametrize(
    "name",
    ["", "A", "-a", "a-", ".", "..", "a/b", "a b", "é", "a\n", "a\0", "a" * 64, "../x", "a_"],
)
def test_another_name_is_rejected_with_the_rule(name):
    with pytest.raises(FieldInvalid, match="must be 1 to 63 of"):
        check_namespace("name", name)


def test_an_error_shows_no_more_of_a_long_name_than_a_name_may_have():
    assert len(name_error("A" * 10_000)) < 200


def test_a_call_that_names_no_namespace_is_one_of_the_default():
    assert namespace_of(()) == "default"
    assert namespace_of([("user-agent", "x"), (NAMESPACE_KEY, "")]) == "default"


def test_a_call_names_its_namespace_in_its_metadata():
    assert namespace_of([("user-agent", "x"), (NAMESPACE_KEY, "run-1")]) == "run-1"


def test_a_call_that_names_two_namespaces_is_rejected():
    assert namespace_of([(NAMESPACE_KEY, "a"), (NAMESPACE_KEY, "a")]) == "a"
    for names in (["a", "b"], ["b", "a"], ["a", "", "default"]):
        with pytest.raises(FieldInvalid, match="must occur once"):
            namespace_of([(NAMESPACE_KEY, name) for name in names])


def test_a_call_with_an_invalid_name_is_rejected():
    with pytest.raises(FieldInvalid, match="x-lightning-namespace: must be"):
        namespace_of([(NAMESPACE_KEY, "../other")])
