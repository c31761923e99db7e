"""What native code says of a process, without the noise of its connections."""

from vfejax.runs.native_output import NativeOutput


def test_the_noise_of_connections_is_left_out_also_where_its_pieces_are_mixed(monkeypatch, capsys):
    said = (
        "[Gloo] Rank 0 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3"
        "\n[Gloo] Rank [Gloo] Rank 1 is connected to 23 peer ranks. \n is connected to 3\n3\n\n"
        "Rank 3 failed\n"
    )
    native = NativeOutput.__new__(NativeOutput)
    monkeypatch.setattr(native, "read", lambda: said)
    native.replay()
    assert capsys.readouterr().err == "Rank 3 failed\n"
