/// How a report stands out on a terminal; nothing where it goes elsewhere.
public struct Style: Sendable {
    private let isOn: Bool

    public static let plain = Style(isOn: false)
    public static let colored = Style(isOn: true)

    private init(isOn: Bool) { self.isOn = isOn }

    // Source: ECMA-48, 8.3.117 (SGR).
    public func bold(_ text: String) -> String { wrap(text, "1") }
    public func dim(_ text: String) -> String { wrap(text, "2") }
    public func removed(_ text: String) -> String { wrap(text, "31") }
    public func added(_ text: String) -> String { wrap(text, "32") }
    public func heading(_ text: String) -> String { wrap(text, "36") }

    private func wrap(_ text: String, _ code: String) -> String { isOn ? "\u{1B}[\(code)m\(text)\u{1B}[0m" : text }
}
