"""Decides if a chat template takes the content of a message as text or as a list of parts.

A template that loops over a message's content expects parts. Loops are found in the syntax tree, by
the rules of vLLM's `--chat-template-content-format auto`.
"""

from collections.abc import Iterator

from jinja2 import nodes


def expects_content_parts(tree: nodes.Template) -> bool:
    """Return True if a loop of the template iterates over a message's content."""
    messages = set(_loop_targets(tree, set(_aliases(tree, "messages"))))
    macros = {id(loop): macro for macro in tree.find_all(nodes.Macro) for loop in _loops(macro)}
    return any(
        _is_content(loop.iter, messages) or _is_content_name(loop, macros, messages, tree)
        for loop in _loops(tree)
    )


def _loops(node: nodes.Node) -> Iterator[nodes.For]:
    return node.find_all(nodes.For)


def _aliases(tree: nodes.Node, name: str) -> Iterator[str]:
    """Yield the name, and the names that it is assigned to, whole, sliced or filtered."""
    seen, waiting = {name}, [name]
    while waiting:
        name = waiting.pop()
        yield name
        for assign in tree.find_all(nodes.Assign):
            target = assign.target
            if (
                isinstance(target, nodes.Name)
                and target.name not in seen
                and _is_name(_unwrapped(assign.node), {name})
            ):
                seen.add(target.name)
                waiting.append(target.name)


def _loop_targets(tree: nodes.Node, names: set[str]) -> Iterator[str]:
    for loop in _loops(tree):
        if _is_name(_unwrapped(loop.iter), names) and isinstance(loop.target, nodes.Name):
            yield loop.target.name


def _unwrapped(node: nodes.Node | None) -> nodes.Node | None:
    """Return the expression without filters, tests and slices around it."""
    while True:
        if isinstance(node, nodes.Filter | nodes.Test) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
        else:
            return node


def _is_name(node: nodes.Node | None, names: set[str]) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name in names


def _is_content(node: nodes.Node | None, messages: set[str]) -> bool:
    node = _unwrapped(node)
    if isinstance(node, nodes.Getitem):
        field = node.arg.value if isinstance(node.arg, nodes.Const) else None
        return field == "content" and _is_name(node.node, messages)
    return (
        isinstance(node, nodes.Getattr) and node.attr == "content" and _is_name(node.node, messages)
    )


def _is_content_name(
    loop: nodes.For, macros: dict[int, nodes.Macro], messages: set[str], tree: nodes.Template
) -> bool:
    """Return True for a loop over `content`, or over a macro parameter that receives it."""
    if not isinstance(loop.iter, nodes.Name):
        return False
    macro = macros.get(id(loop))
    if macro is None:
        return loop.iter.name == "content"
    return loop.iter.name in _content_parameters(macro, messages, tree)


def _content_parameters(
    macro: nodes.Macro, messages: set[str], tree: nodes.Template
) -> Iterator[str]:
    names = [argument.name for argument in macro.args]
    for call in tree.find_all(nodes.Call):
        if _is_name(call.node, {macro.name}):
            arguments = list(zip(names, call.args, strict=False))
            arguments += [(keyword.key, keyword.value) for keyword in call.kwargs]
            yield from (name for name, value in arguments if _is_content(value, messages))
