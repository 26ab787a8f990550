"""What is asked of the cluster behind the active scheduler."""

from daskdecode.engine.workers import workers_of


class AskedByItselfToo:
    """A client whose own look at the scheduler, which asks for no workers, comes between a question and its answer."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def scheduler_info(self, n_workers):
        assert n_workers == -1
        return self.answers.pop(0)


def test_all_workers_are_known_though_the_client_asks_for_none_in_between():
    worker = {"memory_limit": 10}
    client = AskedByItselfToo({"workers": {}, "n_workers": 1}, {"workers": {"tcp://a": worker}, "n_workers": 1})
    assert workers_of(client) == [worker]


def test_older_schedulers_do_not_say_how_many_there_are():
    assert workers_of(AskedByItselfToo({"workers": {}})) == []


def test_a_scheduler_that_has_gone_is_not_asked_for_ever():
    assert workers_of(AskedByItselfToo(*[{"workers": {}, "n_workers": 1}] * 9)) == []
