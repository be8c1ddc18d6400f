%% What the processes of a broker do within five seconds, by their kind, in per cent of all reductions:
%%
%%   rabbitmqctl eval "$(cat bench/reductions.erl)"
%%
%% Those that came or went meanwhile, as a queue does with its fan-out, are the rest.
Kind = fun(Process) ->
    case erlang:process_info(Process, [reductions, registered_name, dictionary, initial_call]) of
        undefined -> gone;
        [{_, Reductions}, {_, []}, {_, Dictionary}, {_, Call}] ->
            {proplists:get_value('$initial_call', Dictionary, Call), Reductions};
        [{_, Reductions}, {_, Name}, _, _] -> {Name, Reductions}
    end
end,
Look = fun() -> maps:from_list([{P, K} || P <- erlang:processes(), K <- [Kind(P)], K =/= gone]) end,
{TotalBefore, _} = erlang:statistics(reductions),
Before = Look(),
timer:sleep(5000),
After = Look(),
{TotalAfter, _} = erlang:statistics(reductions),
Total = TotalAfter - TotalBefore,
Done = maps:fold(
    fun(Process, {Name, Reductions}, Done) ->
        case Before of
            #{Process := {_, Then}} -> maps:update_with(Name, fun(Sum) -> Sum + Reductions - Then end, Reductions - Then, Done);
            _ -> Done
        end
    end,
    #{}, After),
Percent = fun(Reductions) -> round(1000 * Reductions / Total) / 10 end,
Rest = {came_or_went, Total - lists:sum(maps:values(Done))},
Sorted = lists:reverse(lists:keysort(2, [Rest | maps:to_list(Done)])),
[{Name, Percent(Reductions)} || {Name, Reductions} <- lists:sublist(Sorted, 16)].
