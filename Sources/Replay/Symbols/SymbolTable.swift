/// A name for an address.
public struct Symbol: Hashable, Sendable {
    public var name: String
    /// A linear address.
    public var address: UInt64
    /// In bytes; 0 where it isn't known.
    public var size: UInt64

    public init(name: String, address: UInt64, size: UInt64 = 0) {
        self.name = name
        self.address = address
        self.size = size
    }
}

/// Why a file gives no symbols.
public struct SymbolError: Error, Equatable, Sendable, CustomStringConvertible {
    public var description: String
    init(_ description: String) { self.description = description }
}

/// The symbols of a guest: addresses by name, and names by address.
public struct SymbolTable: Sendable {
    /// In the order of their addresses.
    public private(set) var symbols: [Symbol] = []
    private var byName: [String: Int] = [:]

    /// Symbols of one file. A kernel has some 200,000.
    static let most = 1 << 22
    /// How far behind a symbol without a size an address still bears its name.
    private static let reach: UInt64 = 1 << 16

    public init() {}

    public init(_ symbols: some Sequence<Symbol>) { add(symbols) }

    /// Reads whatever `SymbolFile` reads.
    public init(file bytes: [UInt8]) throws(SymbolError) { add(try SymbolFile(bytes).symbols) }

    public var isEmpty: Bool { symbols.isEmpty }

    /// Of symbols with the same name, the first added counts.
    public mutating func add(_ more: some Sequence<Symbol>) {
        var seen = Set(symbols)
        symbols += more.filter { seen.insert($0).inserted }
        var first: [String: Symbol] = [:]
        for symbol in symbols where first[symbol.name] == nil { first[symbol.name] = symbol }
        // At one address the larger one comes last, and is found: a function before the label that it begins with.
        symbols.sort { ($0.address, $0.size, $1.name) < ($1.address, $1.size, $0.name) }
        byName = [:]
        for (index, symbol) in symbols.enumerated() where first[symbol.name] == symbol { byName[symbol.name] = index }
    }

    public mutating func add(_ other: SymbolTable) { add(other.symbols) }

    public subscript(name: String) -> Symbol? { byName[name].map { symbols[$0] } }

    /// The symbol that an address belongs to, and how far into it.
    public func symbol(at address: UInt64) -> (symbol: Symbol, offset: UInt64)? {
        let nearest = symbols.partitioningIndex { $0.address > address } - 1
        // A symbol within another one may end before the address; few nest, so the search is short.
        for index in (max(0, nearest - 15)..<(nearest + 1)).reversed() {
            let symbol = symbols[index]
            let offset = address - symbol.address
            // One without a size ends where another begins.
            if symbol.size > 0 ? offset < symbol.size : index == nearest && offset < Self.reach {
                return (symbol, offset)
            }
        }
        return nil
    }

    /// `name+0x12`, `name`, or nil where the address belongs to no symbol.
    public func name(of address: UInt64) -> String? {
        symbol(at: address).map {
            $0.offset == 0 ? $0.symbol.name : "\($0.symbol.name)+0x\(String($0.offset, radix: 16))"
        }
    }

    /// The name of a return address: a call that never returns may be the last instruction of its function.
    public func name(ofReturnTo address: UInt64) -> String? {
        symbol(at: address &- 1).map { "\($0.symbol.name)+0x\(String($0.offset + 1, radix: 16))" }
    }

    /// The address with its symbol: `0x1001d7 <iterate+0x12>`.
    public func text(_ address: UInt64) -> String { Self.text(address, name(of: address)) }

    static func text(_ address: UInt64, _ name: String?) -> String {
        "0x" + String(address, radix: 16) + (name.map { " <\($0)>" } ?? "")
    }

    /// An address as a person gives it: a number, a symbol, or a symbol and an offset.
    public func address(_ text: String) -> UInt64? {
        if let number = Self.number(text) { return number }
        if let symbol = self[text] { return symbol.address }
        guard let sign = text.lastIndex(where: { $0 == "+" || $0 == "-" }), let base = self[String(text[..<sign])],
            let offset = Self.number(String(text[text.index(after: sign)...]))
        else { return nil }
        return text[sign] == "+" ? base.address &+ offset : base.address &- offset
    }

    private static func number(_ text: String) -> UInt64? {
        text.hasPrefix("0x") || text.hasPrefix("0X") ? UInt64(text.dropFirst(2), radix: 16) : UInt64(text)
    }
}

/// Linux's System.map, and what nm prints: lines of an address in hexadecimal, a letter and a name.
enum SystemMap {
    static func read(_ bytes: [UInt8]) throws(SymbolError) -> [Symbol] {
        var symbols: [Symbol] = []
        var number = 0
        for line in bytes.split(separator: 0x0A, omittingEmptySubsequences: false) {
            number += 1
            let words = line.split { $0 == 0x20 || $0 == 0x09 || $0 == 0x0D }
            if words.isEmpty { continue }
            // nm has no address for an undefined symbol.
            if words.count == 2, words[0].count == 1, "UwvV".utf8.contains(words[0].first ?? 0) { continue }
            guard words.count >= 3, words[1].count == 1,
                let address = UInt64(String(decoding: words[0], as: UTF8.self), radix: 16)
            else { throw SymbolError("line \(number) isn't one of a System.map: an address, a letter, a name") }
            guard symbols.count < SymbolTable.most else { throw SymbolError("more than \(SymbolTable.most) symbols") }
            symbols.append(Symbol(name: String(decoding: words[2], as: UTF8.self), address: address))
        }
        guard !symbols.isEmpty else { throw SymbolError("it has no symbols") }
        return symbols
    }
}
