/// AES-NI, PCLMULQDQ and the SHA extensions.
///
/// Source: FIPS 197 and FIPS 180-4; Intel SDM Vol. 2 for what an instruction does of a round.
enum VectorCipher: UInt16 {
    case encrypt, encryptLast, decrypt, decryptLast, invertMixColumns, assistKey
    case multiplyCarryless
    case sha1Next, sha1Schedule1, sha1Schedule2, sha1Rounds, sha256Schedule1, sha256Schedule2, sha256Rounds
}

/// The S-box of AES and its inverse.
private struct SubstitutionBox: Sendable {
    let forward: [UInt8]
    let inverse: [UInt8]

    init() {
        var forward = [UInt8](repeating: 0, count: 256)
        var inverse = [UInt8](repeating: 0, count: 256)
        // Powers of 3 and of its inverse run through the field together. Source: FIPS 197, 4.2 and 5.1.1.
        var p: UInt8 = 1, q: UInt8 = 1
        repeat {
            p = p ^ doubled(p)
            q ^= q << 1
            q ^= q << 2
            q ^= q << 4
            if q & 0x80 != 0 { q ^= 0x09 }
            func rotated(_ n: UInt8) -> UInt8 { q << n | q >> (8 - n) }
            forward[Int(p)] = q ^ rotated(1) ^ rotated(2) ^ rotated(3) ^ rotated(4) ^ 0x63
        } while p != 1
        forward[0] = 0x63
        for i in 0..<256 { inverse[Int(forward[i])] = UInt8(i) }
        self.forward = forward
        self.inverse = inverse
    }

    static let aes = SubstitutionBox()
}

/// Times 2 in the field of AES.
private func doubled(_ x: UInt8) -> UInt8 { x << 1 ^ (x & 0x80 != 0 ? 0x1B : 0) }

private func product(_ x: UInt8, _ y: UInt8) -> UInt8 {
    var (x, y, sum) = (x, y, 0 as UInt8)
    while y != 0 {
        if y & 1 != 0 { sum ^= x }
        x = doubled(x)
        y >>= 1
    }
    return sum
}

private typealias State = SIMD16<UInt8>
private typealias Words = SIMD4<UInt32>

private func substituted(_ x: State, by table: [UInt8]) -> State {
    var r = State()
    for i in 0..<16 { r[i] = table[Int(x[i])] }
    return r
}

/// Row i moves by i columns: to the left, or back to the right.
private func shiftedRows(_ x: State, back: Bool) -> State {
    var r = State()
    for i in 0..<16 { r[i] = x[(back ? i &- 4 &* (i & 3) : i &+ 4 &* (i & 3)) & 15] }
    return r
}

private func mixedColumns(_ x: State, _ factors: [UInt8]) -> State {
    var r = State()
    for i in 0..<16 {
        let column = i & ~3
        for j in 0..<4 { r[i] ^= product(x[column | (i &+ j) & 3], factors[j]) }
    }
    return r
}

private let mix: [UInt8] = [2, 3, 1, 1]
private let unmix: [UInt8] = [14, 11, 13, 9]

extension Core {
    func executeCipher(_ code: VectorCipher, _ form: VectorForm, _ o: VectorOperands) {
        let box = SubstitutionBox.aes
        let x = o.a.loadUnaligned(as: State.self)
        let key = o.b.loadUnaligned(as: State.self)
        let result: State
        switch code {
        case .encrypt: result = mixedColumns(shiftedRows(substituted(x, by: box.forward), back: false), mix) ^ key
        case .encryptLast: result = shiftedRows(substituted(x, by: box.forward), back: false) ^ key
        case .decrypt: result = mixedColumns(shiftedRows(substituted(x, by: box.inverse), back: true), unmix) ^ key
        case .decryptLast: result = shiftedRows(substituted(x, by: box.inverse), back: true) ^ key
        case .invertMixColumns: result = mixedColumns(key, unmix)
        case .assistKey:
            let y = unsafeBitCast(substituted(key, by: box.forward), to: Words.self)
            func rotated(_ word: UInt32) -> UInt32 { (word >> 8 | word << 24) ^ UInt32(o.immediate) }
            result = unsafeBitCast(Words(y[1], rotated(y[1]), y[3], rotated(y[3])), to: State.self)
        case .multiplyCarryless:
            let a = VectorOperands.load(o.a, Int(o.immediate & 1), UInt64.self)
            let b = VectorOperands.load(o.b, Int(o.immediate >> 4 & 1), UInt64.self)
            var low: UInt64 = 0, high: UInt64 = 0
            for i in 0..<64 as Range<UInt64> where b >> i & 1 != 0 {
                low ^= a << i
                if i != 0 { high ^= a >> (64 - i) }
            }
            result = unsafeBitCast(SIMD2(low, high), to: State.self)
        default: result = unsafeBitCast(hashed(code, o), to: State.self)
        }
        o.d.storeBytes(of: result, as: State.self)
    }

    private func hashed(_ code: VectorCipher, _ o: VectorOperands) -> Words {
        let x = o.a.loadUnaligned(as: Words.self)
        let y = o.b.loadUnaligned(as: Words.self)
        func left(_ word: UInt32, _ n: UInt32) -> UInt32 { word << n | word >> (32 - n) }
        func right(_ word: UInt32, _ n: UInt32) -> UInt32 { word >> n | word << (32 - n) }
        switch code {
        case .sha1Next: return Words(y[0], y[1], y[2], y[3] &+ left(x[3], 30))
        case .sha1Schedule1: return Words(x[0] ^ y[2], x[1] ^ y[3], x[2] ^ x[0], x[3] ^ x[1])
        case .sha1Schedule2:
            let w16 = left(x[3] ^ y[2], 1), w17 = left(x[2] ^ y[1], 1), w18 = left(x[1] ^ y[0], 1)
            return Words(left(x[0] ^ w16, 1), w18, w17, w16)
        case .sha1Rounds: return sha1Rounds(x, y, o.immediate & 3)
        case .sha256Schedule1:
            func sigma(_ w: UInt32) -> UInt32 { right(w, 7) ^ right(w, 18) ^ w >> 3 }
            return Words(x[0] &+ sigma(x[1]), x[1] &+ sigma(x[2]), x[2] &+ sigma(x[3]), x[3] &+ sigma(y[0]))
        case .sha256Schedule2:
            func sigma(_ w: UInt32) -> UInt32 { right(w, 17) ^ right(w, 19) ^ w >> 10 }
            let w16 = x[0] &+ sigma(y[2]), w17 = x[1] &+ sigma(y[3])
            return Words(w16, w17, x[2] &+ sigma(w16), x[3] &+ sigma(w17))
        default:
            var (a, b, c, d) = (y[3], y[2], x[3], x[2])
            var (e, f, g, h) = (y[1], y[0], x[1], x[0])
            let keys = s.floatingPoint.vector(0).loadUnaligned(as: SIMD2<UInt32>.self)
            for i in 0..<2 {
                let t = h &+ (right(e, 6) ^ right(e, 11) ^ right(e, 25)) &+ (e & f ^ ~e & g) &+ keys[i]
                let u = (right(a, 2) ^ right(a, 13) ^ right(a, 22)) &+ (a & b ^ a & c ^ b & c)
                (h, g, f, e, d, c, b, a) = (g, f, e, d &+ t, c, b, a, t &+ u)
            }
            return Words(f, e, b, a)
        }
    }

    private func sha1Rounds(_ x: Words, _ y: Words, _ kind: UInt8) -> Words {
        func left(_ word: UInt32, _ n: UInt32) -> UInt32 { word << n | word >> (32 - n) }
        let constants: Words = [0x5A82_7999, 0x6ED9_EBA1, 0x8F1B_BCDC, 0xCA62_C1D6]
        var (a, b, c, d, e) = (x[3], x[2], x[1], x[0], 0 as UInt32)
        for i in 0..<4 {
            let f = kind == 0 ? b & c ^ ~b & d : kind == 2 ? b & c ^ b & d ^ c & d : b ^ c ^ d
            // The first of the words has E added already.
            let t = f &+ left(a, 5) &+ y[3 - i] &+ e &+ constants[Int(kind)]
            (e, d, c, b, a) = (d, c, left(b, 30), a, t)
        }
        return Words(d, c, b, a)
    }
}
