"""The program that looks after HAProxy: what it reads from the file and from HAProxy, and what it says to it."""

from nsnet.programs.ingress import commands, states, wanted_of

CONFIG = """\
global
    description nsnet 51b5e3ef0742636c

backend none
    http-request return status 404

backend default:a:80
    server 10.244.1.2:8080 10.244.1.2:8080
    server 10.244.2.2:8080 10.244.2.2:8080

backend default:b:80
"""
STATE = """\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight
4 default:a:80 1 10.244.1.2:8080 10.244.1.2 2 0 1 1
4 default:a:80 2 10.244.2.2:8080 10.244.2.2 0 1 1 1
"""
A = ("default:a:80", "10.244.1.2:8080")
B = ("default:a:80", "10.244.2.2:8080")


def test_the_file_says_its_hash_and_servers() -> None:
    assert wanted_of(CONFIG) == ("nsnet 51b5e3ef0742636c", {A: A[1], B: B[1]})


def test_a_server_in_maintenance_is_not_in_use() -> None:
    assert states(STATE) == {A: True, B: False}
    assert states("") == {}


def test_commands() -> None:
    new = ("default:b:80", "10.244.1.9:80")
    assert commands({A: A[1], B: B[1], new: new[1]}, {A: True, B: False}) == [
        "set server default:a:80/10.244.2.2:8080 state ready",
        "add server default:b:80/10.244.1.9:80 10.244.1.9:80 pool-purge-delay 5s pool-max-conn 1000",
        "enable server default:b:80/10.244.1.9:80",
    ]
    assert commands({}, {A: True}) == [
        "set server default:a:80/10.244.1.2:8080 state maint",
        "del server default:a:80/10.244.1.2:8080",
    ]
    assert commands({}, {B: False}) == ["del server default:a:80/10.244.2.2:8080"]
    assert commands({A: A[1]}, {A: True}) == []
